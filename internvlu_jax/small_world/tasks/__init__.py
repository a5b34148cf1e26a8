"""What is asked about scenes, and what they are drawn for: specs, captions, edits, questions, riddles, domains."""
