"""What `dexml analyze` measures of a run and of a data set, and its reports."""
