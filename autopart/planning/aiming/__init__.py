"""The other objectives: rent, memory, number of devices, and limits beside them."""
