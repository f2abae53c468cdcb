"""People, stages and clips that anyone can make again from a seed, with their truth.

What a fit is scored on is drawn by another renderer than the fit's (Mitsuba 3), so that the score does not flatter it.
"""
