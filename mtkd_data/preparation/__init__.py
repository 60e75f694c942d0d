"""From a folder of HR images to a paired data set for BasicSR, and its verification; none of it loads torch."""
