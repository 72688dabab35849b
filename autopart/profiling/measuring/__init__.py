"""What layers take on devices that are here."""
