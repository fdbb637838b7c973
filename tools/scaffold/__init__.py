"""`redundancy new`: asks the questions of the decision card, and writes the files of an entry, a paper or a claim."""
