"""Devices that are not here: slower, smaller, badly connected."""
