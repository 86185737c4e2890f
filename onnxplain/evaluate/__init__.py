"""How good an explanation is, in numbers. Arrays only."""
