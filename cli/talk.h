/* A conversation: messages, their place in the context, and the turns taken. */
#ifndef TN_CLI_TALK_H
#define TN_CLI_TALK_H

#include "generate.h"
#include "session.h"

typedef struct tn_talk {
    tn_session s;
    tn_settings set;      /* of its own: /params changes it */
    tn_message *messages; /* contents and roles owned here */
    size_t n, cap;
    uint64_t n_answers; /* generated so far; the seed of an answer is the first seed plus this */
    bool interactive;   /* a person is typing */
} tn_talk;

/* Opens model and context and checks that the chat format is known. */
int tn_talk_open(tn_talk *t, const tn_settings *set);
void tn_talk_close(tn_talk *t);

/* Content is copied. */
void tn_talk_add(tn_talk *t, const char *role, const char *content);
/* Forgets the last `count` messages, or as many as there are (the system message stays). */
void tn_talk_drop_last(tn_talk *t, size_t count);
/* The last message of the user, NULL if there is none. */
const char *tn_talk_last_user(const tn_talk *t);
/* Sets, replaces or (NULL, "") removes the system message. */
void tn_talk_set_system(tn_talk *t, const char *text);
void tn_talk_clear(tn_talk *t);

/* Has the model answer the messages, streaming to standard output, and adds the answer to them. If
 * it could not begin (too long, cancelled), the last message is forgotten. TN_EXIT_OK also after an
 * interruption; otherwise an exit code after saying why. */
int tn_talk_answer(tn_talk *t);

#endif
