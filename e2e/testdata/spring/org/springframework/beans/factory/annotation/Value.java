package org.springframework.beans.factory.annotation;

/** Stands in for Spring's. */
public @interface Value {
    String value();
}
