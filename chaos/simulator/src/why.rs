//! Why a region is where it is, in a scenario: what an operator asks at 3 a.m., asked of a rehearsal.
