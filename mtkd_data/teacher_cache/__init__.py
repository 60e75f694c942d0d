"""What frozen teachers make of a training set, computed once and kept; a cache is read without torch or BasicSR."""
