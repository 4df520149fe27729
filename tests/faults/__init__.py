"""Faults, each really injected, and what became of the Pods: none lost, none doubled, every end told truly. docs/faults.md."""
