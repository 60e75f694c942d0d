"""The options reference: what the code says of its options, as a page."""
