"""The command line: one thin file per command; `console` is the only module that prints."""
