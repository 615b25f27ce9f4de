"""What a configuration costs, by arithmetic and by the clock."""
