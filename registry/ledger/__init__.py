"""The database that numbers and decides; the only code that speaks SQL."""
