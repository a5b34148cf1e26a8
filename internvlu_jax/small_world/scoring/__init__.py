"""Exact scorers: a picture is read back into what it shows, and that is compared with what was asked for.

reader.py   pictures to objects and words     geneval.py  verdicts on pictures      words.py      on the words in them
edits.py    edits done, and the rest kept     answers.py  answers to questions      cases.py      the fixed cases
suite.py    cases put to a model, and scores  sheet.py    right and wrong ones      responder.py  a pipeline as a model
"""
