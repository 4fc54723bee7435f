"""A job for each engine that starts several machines; one file for each, and what all of them share in `command`."""
