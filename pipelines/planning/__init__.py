"""What a run needs and costs, from its configuration alone."""
