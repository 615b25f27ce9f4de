"""The report of a sweep; `write.write_report` is the way in."""
