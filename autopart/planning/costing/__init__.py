"""What stages cost: time, memory, messages between members, for every run of layers."""
