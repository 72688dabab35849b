"""Processes: started, watched, ended, and what they left behind."""
