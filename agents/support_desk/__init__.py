"""A support desk: a fast triage, a stronger specialist and a person settle customer tickets between them."""
