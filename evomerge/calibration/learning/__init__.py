"""What merges with is learnt on data by gradients: coefficients, masks, factors of columns.

`settings` says what and how, `tensors` has the models, `factors` says how a merged tensor depends on what is learnt,
`objective` what is to be least, `loop` goes down, and `product` keeps what methods read.
"""
