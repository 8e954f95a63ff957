"""The command line: one file a command; imports of heavy packages wait until a command runs."""
