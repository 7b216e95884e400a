package org.springframework.stereotype;

/** Stands in for Spring's. */
public @interface Component {}
