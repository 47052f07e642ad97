"""What can go wrong while the scripts run: `make faults` tries it, and prints what was tried, survived and lost."""
