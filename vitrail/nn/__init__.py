"""What two or more methods share: randomness, heads, coding rate, EMA, collectives."""
