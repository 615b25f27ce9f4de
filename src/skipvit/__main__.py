"""`python -m skipvit` is `skipvit`."""

from skipvit.cli import main

main()
