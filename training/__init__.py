"""Split -> Bundle -> report: what the command line trains, exports and measures."""
