"""The poison row of the table, given to this library and to others: `python -m tests.faults.beside`."""
