"""What runs in an environment of its own: each file is started by path, reads one JSON file and writes another."""
