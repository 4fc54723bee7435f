"""Where a deployed version keeps its conversations."""

# The experiment that keeps them as traces; unset, none are kept.
TRACES = "TUNESMITH_TRACE_EXPERIMENT"
