"""The command line: one file per command; it parses, calls the api, prints, and maps errors to exit codes."""
