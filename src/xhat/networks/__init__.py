"""Networks: any nn.Module called as net(z, t, **cond); two small ones of our own."""
