"""HPK: Kubernetes for a user of an HPC cluster."""

__version__ = "0.1.0"
