"""A registered version in other forms, each judged again beside the adapter."""
