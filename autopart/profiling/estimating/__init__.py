"""What layers would take on kinds that are not here."""
