"""Graphs from elsewhere: workloads of nodes and edges on equal accelerators."""
