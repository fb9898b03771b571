/* The compiler makes a variant of a function for each of the processors below, and the dynamic loader picks one. */
#ifndef MVLM_PROCESSORS_H
#define MVLM_PROCESSORS_H

#include <stdint.h> /* defines __GLIBC__, whose loader can do so */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#endif
