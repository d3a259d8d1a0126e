"""The device: picture in, sentence tokens out, question sent, answer shown.

Importing this package loads nothing else; take what you need from its modules:
`encoder.Encoder` (picture to tokens), `client.Client` (tokens and words to hits), `sheet` (hits to pictures).
"""
