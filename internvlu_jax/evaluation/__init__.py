"""Exact scorers: a picture is read back into what it shows, and that is compared with what was asked for.

reader.py   pictures to objects and words     geneval.py  prompts in six categories, and verdicts
edits.py    edits done, and the rest kept     answers.py  answers to questions     scores.py   shares with intervals
"""
