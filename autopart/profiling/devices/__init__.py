"""Devices and links: the catalogue, what is here, what a user's file describes."""
