//! The whole judgement: from evidence to a verdict, or to every reason against it.
