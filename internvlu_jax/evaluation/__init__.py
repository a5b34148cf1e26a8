"""Exact scorers: a picture is read back into what it shows, and that is compared with what was asked for.

reader.py   pictures to objects and words     geneval.py  verdicts on pictures    words.py   on the words in them
edits.py    edits done, and the rest kept     answers.py  answers to questions    scores.py  shares with intervals
cases.py    the fixed cases of each score     suite.py    cases put to a model    model.py   a pipeline as that model
"""
