"""Whether a run fits a cluster, worked out without one: layout rules, memory by phase, and layouts to try."""
