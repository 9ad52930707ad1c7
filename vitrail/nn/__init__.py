"""Mathematics shared by two or more methods: randomness, heads, losses, EMA, schedules."""
