"""Choose: functions that return a whole Recipe, named after what they reproduce."""
