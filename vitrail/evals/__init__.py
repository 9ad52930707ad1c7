"""Features -> numbers and pictures: knows encoders, never objectives."""
