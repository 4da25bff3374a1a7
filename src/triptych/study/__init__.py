"""Many runs: their directory, rounds of seeds, the live table and the report at the end."""
