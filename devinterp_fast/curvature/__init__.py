"""Curvature of the loss: products with Hessian, GGN and Fisher, and what is read off them with error bars."""
