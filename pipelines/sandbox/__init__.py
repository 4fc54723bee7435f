"""Running programs that a model wrote: isolated, limited, and judged by a process that they can't reach."""
